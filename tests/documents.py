"""Documents that came in parts."""

from interop.rows import Part


def whole(found):
    """Texts, of which long ones came in parts -> documents."""
    documents, begun = [], ""
    for text in found:
        begun += text
        if not isinstance(text, Part):
            documents.append(begun)
            begun = ""
    assert begun == ""
    return documents
