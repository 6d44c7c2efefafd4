"""What the tests of every page read it with."""

from html.parser import HTMLParser

VOID = {"img", "meta", "br", "link", "hr", "input", "rect", "line", "polyline", "polygon"}


class Page(HTMLParser):
    """Reads a page's text, checks that tags close in order, and collects pictures, addresses and words."""

    def __init__(self, html):
        super().__init__()
        self.open, self.images, self.addresses, self.text = [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action", "data") if values.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data
