"""What the instruments cost beside what they cannot avoid, and beside other libraries.

This file makes the folder a package: Opacus installs one of the same name, which would be found before a plain folder.
"""
