"""Text to image by the parts of a latent diffusion model: tokenizer, text encoder, U-Net, decoder.

- `tokenizer` turns prompts into ids, by the library `tokenizers` (extra `text`).
- `prompts` encodes them, `latents` encodes and decodes images, `noise` draws the first latents.
- `generate` has the pure functions, and `draw` all of it for a `request`: prompts, images, masks.
- `word_maps` shows where on the images each word of a prompt acts.

The networks are in `models`, their files in `pretrained`.
Imports `pretrained`, `generation` and the packages below them.
"""

from ddpm_jax.text_to_image.latents import decode, encode_image
from ddpm_jax.text_to_image.prompts import encode_text, tokenize, word_tokens

__all__ = ["decode", "encode_image", "encode_text", "tokenize", "word_tokens"]
