"""What operations with rows of modulation share: how a token finds its row, and sums over the tokens of each row."""
