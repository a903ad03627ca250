"""The toolkit of dataset authors: archives, downloads, decoding, and caches of pixels."""
