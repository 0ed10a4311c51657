"""Preference losses, and the logic of them. Importing this package is light; torch and sympy load
with the module that is used."""
