"""SAFE-DiT: selective, faster inference for diffusion transformers, without retraining.

The engine is headless: it needs PyTorch and NumPy only, and knows no framework outside `hosts/`.
Importing this package loads nothing; import the module you need.
"""
