"""The embedded default: a tiny CLIP that this project trained on glyphs."""

from pathlib import Path

# A Hugging Face directory, for `models.weights.load_pretrained`.
CLIP = Path(__file__).parent / "clip"
