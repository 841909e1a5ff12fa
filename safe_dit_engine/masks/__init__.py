"""Attention masks: what a mask provably does, and attention without what it does not need (Mask Elision Patcher)."""
