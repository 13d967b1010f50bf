"""Tables and pictures of finished runs, made from their files alone: no network and no tensor library is needed to look at a result."""
