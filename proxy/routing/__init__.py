"""Which backend is an identity's home: computed from settings alone, alike in every proxy."""
