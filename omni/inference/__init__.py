"""Using a trained model. Never imports training or data."""
