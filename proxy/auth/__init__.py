"""Who is calling: canonical names, and the identity sources that are asked in their order."""
