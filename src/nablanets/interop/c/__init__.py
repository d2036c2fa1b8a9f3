"""Gradient maps as plain C99: one file without allocation, for programs and controllers without Python."""
