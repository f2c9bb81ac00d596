"""The harness: sweep -> cases -> isolated workers -> journal -> reports."""
