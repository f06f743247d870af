"""Places for results that are no folders: `s3://`, `gs://` and whatever else pyarrow or fsspec can write to."""
