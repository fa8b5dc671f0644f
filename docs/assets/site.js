// The theme wraps wide tables so that they scroll; the keyboard reaches them only with a tabindex.
new MutationObserver(() => {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) wrap.tabIndex = 0;
}).observe(document.documentElement, { childList: true, subtree: true });
