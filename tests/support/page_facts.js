// What a page looks like, measured in the browser: evaluated with a selector of the parts that are looked at, it returns
// {width, overflowing, pictures, collisions, faint}: see `Facts` in support/page_facts.py.
async selector => {
  const width = document.documentElement.clientWidth;
  const parts = [...document.querySelectorAll(selector)];
  const name = element => {
    const text = (element.textContent || "").trim().replace(/\s+/g, " ").slice(0, 60);
    return `<${element.tagName.toLowerCase()}> ${text}`;
  };
  const isShown = element => element.checkVisibility({ checkVisibilityCSS: true, checkOpacity: true });
  const box = element => {
    const { left, top, right, bottom } = element.getBoundingClientRect();
    return { left: left + scrollX, top: top + scrollY, right: right + scrollX, bottom: bottom + scrollY };
  };
  const within = (inner, outer) =>
    inner.left >= outer.left - 1 && inner.right <= outer.right + 1 && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
  const scrolls = element => {
    for (let above = element.parentElement; above; above = above.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(above).overflowX)) return true;
    return false;
  };

  // Beyond the page, or cut off without a way to get there.
  const overflowing = document.documentElement.scrollWidth > width ? ["the page itself"] : [];
  for (const part of parts)
    for (const element of [part, ...part.querySelectorAll("*")]) {
      if (!isShown(element)) continue;
      const isCut = element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX === "hidden";
      if (isCut || (box(element).right > width + 1 && !scrolls(element))) overflowing.push(name(element));
    }

  const pictures = [], collisions = [];
  for (const svg of parts.flatMap(part => [...part.querySelectorAll("svg")]).filter(isShown)) {
    const frame = box(svg);
    pictures.push({ x: frame.left, y: frame.top, width: frame.right - frame.left, height: frame.bottom - frame.top });
    const texts = [...svg.querySelectorAll("text")].filter(isShown);
    const boxes = texts.map(box);
    texts.forEach((text, i) => {
      if (!within(boxes[i], frame)) collisions.push(`${name(text)} leaves its picture`);
      for (let j = 0; j < i; j++) {
        const across = Math.min(boxes[i].right, boxes[j].right) - Math.max(boxes[i].left, boxes[j].left);
        const down = Math.min(boxes[i].bottom, boxes[j].bottom) - Math.max(boxes[i].top, boxes[j].top);
        if (across > 1 && down > 3) collisions.push(`${name(text)} lies on ${name(texts[j])}`);
      }
    });
  }

  // Colours as [red, green, blue, opacity], whatever notation they are in.
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const colour = text => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map(value => value / 255);
  };
  const over = (upper, lower) => upper.slice(0, 3).map((value, i) => value * upper[3] + lower[i] * (1 - upper[3]));
  const luminance = ([red, green, blue]) =>
    [red, green, blue]
      .map(value => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const opacity = element => {
    let product = 1;
    for (let above = element; above; above = above.parentElement) product *= getComputedStyle(above).opacity;
    return product;
  };
  const painted = element => {
    const style = getComputedStyle(element);
    const isShape = element instanceof SVGGeometryElement && !(element instanceof SVGTextContentElement);
    const paint = isShape ? style.fill : style.backgroundColor;
    if (paint === "none") return [0, 0, 0, 0];
    const [red, green, blue, alpha] = colour(paint);
    return [red, green, blue, alpha * (isShape ? style.fillOpacity : 1) * opacity(element)];
  };
  // What is behind everything is the root's background, or else the body's.
  const [root, body] = [painted(document.documentElement), painted(document.body)];
  const canvas = over(root[3] ? root : body, [1, 1, 1]);
  const faint = [];
  for (const part of parts) {
    const walker = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const holder = node.parentElement;
      if (!node.data.trim() || !isShown(holder) || ["STYLE", "SCRIPT", "TITLE"].includes(holder.tagName.toUpperCase())) continue;
      holder.scrollIntoView({ block: "center", inline: "nearest", behavior: "instant" });
      const range = document.createRange();
      range.selectNodeContents(node);
      const at = range.getClientRects()[0];
      if (!at || at.right < 0 || at.left + at.width / 2 > innerWidth) continue;
      const below = document.elementsFromPoint(at.left + at.width / 2, at.top + at.height / 2);
      const ground = below.reverse().reduce((under, element) => over(painted(element), under), canvas);
      const style = getComputedStyle(holder);
      const ink = colour(holder instanceof SVGElement ? style.fill : style.color);
      const shown = over([...ink.slice(0, 3), ink[3] * opacity(holder)], ground);
      const [light, dark] = [luminance(shown), luminance(ground)].sort((a, b) => b - a);
      const contrast = (light + 0.05) / (dark + 0.05);
      if (contrast < 3) faint.push(`${name(holder)}: contrast ${contrast.toFixed(1)}`);
    }
  }
  scrollTo(0, 0);
  return { width, overflowing, pictures, collisions, faint };
}
