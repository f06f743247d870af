"""Result stores other than local folders: `s3://`, `gs://` and everything else that pyarrow or fsspec can write to."""
