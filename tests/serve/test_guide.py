"""The guide works when pasted: its servers are started in the background, all else runs against them."""
