"""Pictures of digits and numbers as telephones take them, made from a seed."""
