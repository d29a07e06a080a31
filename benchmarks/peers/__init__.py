"""What others would run, for comparison; needs the packages of requirements.txt beside this."""
