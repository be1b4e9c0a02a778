"""How the mini weights that ship with the package were made: ``python -m neuroclips.mini --help``.

Two frozen spaces for laptops: an autoencoder (``diffusers.AutoencoderKL``) and a small CLIP
(``transformers.CLIPModel``), trained on the picture-book world. Things and places that the demo holds out
(``Thing.held_out``) never occur in their training. The judge, which only scores, has seen them.
"""
