"""Programs of peers, for comparison; they need the packages of requirements.txt in this folder."""
