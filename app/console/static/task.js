// Draws the waveform above each player; without scripts the player alone works.
(() => {
  "use strict";
  const nonce = document.currentScript.dataset.nonce;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colours = (wave) => {
    const style = getComputedStyle(wave);
    return { waveColor: style.color, progressColor: style.outlineColor, cursorColor: style.outlineColor };
  };

  async function draw(wave) {
    const audio = wave.parentElement.querySelector("audio");
    const answer = await fetch(wave.dataset.peaks);
    const made = answer.ok ? await answer.json() : { peaks: [] };
    // What the service cannot decode the browser may: then it loads the whole file.
    const known = made.peaks.length ? { peaks: [made.peaks], duration: made.duration } : { url: audio.src };
    const player = WaveSurfer.create({
      container: wave, media: audio, height: 64, normalize: true, cspNonce: nonce, ...colours(wave), ...known,
    });
    player.on("error", () => wave.remove());
    dark.addEventListener("change", () => player.setOptions(colours(wave)));
  }

  function drawAll() {
    for (const wave of document.querySelectorAll(".wave:not([data-drawn])")) {
      wave.dataset.drawn = "";
      draw(wave).catch(() => wave.remove());
    }
  }

  document.addEventListener("DOMContentLoaded", drawAll);
  document.addEventListener("htmx:after:swap", drawAll);
})();
