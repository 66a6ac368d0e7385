"""What a mixer looks at: its implicit attention map, how far its heads remember, and what a token's feature sees."""
