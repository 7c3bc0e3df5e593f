# needs: llm==0.36
"""`llm`, from the command line, with a model of its own file of models."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

url, model, question, expected = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    models = f"- model_id: swarm\n  model_name: {model}\n  api_base: {url}/v1\n"
    Path(folder, "extra-openai-models.yaml").write_text(models)
    command = [str(Path(sys.executable).with_name("llm")), "-m", "swarm", "-o", "temperature", "0", question]
    home = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
    for options in ([], ["--no-stream"]):
        done = subprocess.run([*command, *options], env=home, capture_output=True, text=True, check=False)
        assert expected in done.stdout, done.stderr
