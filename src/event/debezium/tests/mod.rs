mod fixtures;
mod router;
