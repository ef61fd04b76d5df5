// Read from disk, a page may not fetch another page: search then lists titles without excerpts, and logs no error.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
