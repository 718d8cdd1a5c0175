"""The embedded CLIP: a tiny model that this project trained on glyphs."""

from pathlib import Path

# A directory in Hugging Face's format, as `models.weights.load_pretrained`
# reads it.
CLIP = Path(__file__).parent / "clip"
