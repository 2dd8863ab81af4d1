"""What people are shown: short texts, and pictures for notebooks, made of plain values.

Pictures are HTML with inline SVG: no script, nothing that is loaded, readable on light and on dark pages.
"""
