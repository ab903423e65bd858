"""The pages of the studio, one file a tab: builders, and plain handlers from the store to what is shown."""
