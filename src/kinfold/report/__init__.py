"""How results are shown: progress bars, tables, HTML reports, cards. Knows no codec and no pack."""
