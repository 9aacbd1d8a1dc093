"""The numbers that papers and their users print of the field's suites, beside one's own.

Each is retyped by hand, with its source, and whether its text was read or somebody else quotes it.
None of them was measured by this project.
"""
