"""What measures the product, and what trained its demo model: `python -m benchmarks NAME`. Not part of the installed pack."""
