def check(text, launches, traits): pass
