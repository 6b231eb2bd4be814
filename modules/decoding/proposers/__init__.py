"""Where drafted tokens come from: earlier text, a smaller model, or nowhere."""
