"""Hours of misfortune in minutes: nodes that are killed all the time, and frames that no peer of ours would send."""
