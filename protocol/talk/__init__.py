"""Messages over a transport's streams: a channel of frames, and short exchanges of questions and answers."""
