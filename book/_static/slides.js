/* Start the slides: typeset the formulas, then make each slide fit when it is first shown. */

const HEIGHT = 720;
const LARGEST = 28;
const SMALLEST = 14;
const PICTURE = 500;

/** Shrink pictures first, then the text; what stays small moves towards the middle. */
function fit(slide) {
  const sheet = slide?.querySelector(".sheet");
  if (!sheet || slide.dataset.fitted) return;
  slide.dataset.fitted = "yes";
  const tall = () => sheet.offsetHeight > slide.clientHeight - 60 || slide.scrollHeight > slide.clientHeight;
  for (let height = PICTURE; tall() && height > 280; height -= 20) {
    for (const image of slide.querySelectorAll("figure img")) image.style.height = `${height}px`;
  }
  for (let size = LARGEST; tall() && size > SMALLEST; size -= 1) slide.style.fontSize = `${size}px`;
  if (!slide.querySelector("h1, h2")) sheet.style.paddingTop = `${Math.max(0, (slide.clientHeight - 60 - sheet.offsetHeight) / 3)}px`;
}

window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => undefined)));
  const show = new Reveal(document.querySelector(".reveal"), {
    width: 1280,
    height: HEIGHT,
    margin: 0.05,
    center: false,
    hash: true,
    slideNumber: "c/t",
    transition: "none",
    viewDistance: 2,
    plugins: [RevealNotes],
  });
  show.on("ready", (event) => fit(event.currentSlide));
  show.on("slidechanged", (event) => fit(event.currentSlide));
  await show.initialize();
  window.show = show;
});
