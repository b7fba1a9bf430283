/* Keeps what the page says in step: the accordion's line after a generation, the tab "Accel" while it is looked at. */

(function () {
    const IDLE_MS = 2000, BUSY_MS = 700, GIVE_UP_MS = 15000;
    const latest = {};

    function byId(id) {
        return gradioApp().querySelector(`#${id}`);
    }

    // Live previews are pictures of the same gallery, and change at every step.
    function firstPicture(tab) {
        const pictures = Array.from(gradioApp().querySelectorAll(`#${tab}_gallery img`));
        return pictures.find((picture) => !picture.closest(".livePreview"))?.src;
    }

    onAfterUiUpdate(function () {
        for (const tab of ["txt2img", "img2img"]) {
            if (gradioApp().querySelector(`#${tab}_gallery_container .livePreview`)) continue;
            const picture = firstPicture(tab);
            if (picture && picture !== latest[tab]) {
                latest[tab] = picture;
                byId(`accel_${tab}_refresh`)?.click();
            }
        }
    });

    // The tab: one question at a time, none while nobody looks.
    let asked = 0, isAsked = false;

    function renew() {
        const tab = byId("accel_tab");
        if (document.hidden || !tab?.offsetParent) return;
        watch(tab);
        const wait = isAsked ? GIVE_UP_MS : tab.querySelector("[data-running]") ? BUSY_MS : IDLE_MS;
        if (performance.now() - asked < wait) return;
        asked = performance.now();
        isAsked = true;
        byId("accel_refresh")?.click();
    }

    document.addEventListener("accel-renewed", () => { isAsked = false; });
    setInterval(renew, BUSY_MS / 2);

    // A part that changed is made anew: what was open, scrolled or focused in it is put back before it is painted.
    const opened = new Map(), scrolled = new Map();
    const observer = new MutationObserver(putBack);
    let focused = "", watched = null;

    function ours(event) {
        return event.target.id?.startsWith?.("accel_") ? event.target : null;
    }

    function putBack() {
        for (const [id, open] of opened) {
            const details = byId(id);
            if (details && details.open !== open) details.open = open;
        }
        for (const [id, left] of scrolled) {
            const box = byId(id);
            if (box && box.scrollLeft !== left) box.scrollLeft = left;
        }
        if (focused && document.activeElement === document.body) byId(focused)?.focus({ preventScroll: true });
    }

    document.addEventListener("toggle", (event) => {
        if (ours(event)?.isConnected) opened.set(event.target.id, event.target.open);
    }, true);
    document.addEventListener("scroll", (event) => {
        if (ours(event)) scrolled.set(event.target.id, event.target.scrollLeft);
    }, true);
    document.addEventListener("pointerdown", () => { focused = ""; }, true);
    document.addEventListener("focusin", (event) => {
        focused = event.target.closest?.("#accel_tab .accel-part") ? event.target.id : "";
    });

    function watch(tab) {
        if (tab === watched) return;
        watched = tab;
        observer.disconnect();
        observer.observe(tab, { childList: true, subtree: true });
    }

    // Without https, as in a local network, a page has no navigator.clipboard.
    function copyByHand() {
        const box = gradioApp().querySelector("#accel_report textarea");
        box.select();
        return document.execCommand("copy");
    }

    function say(words) {
        const button = byId("accel_copy"), before = button.dataset.label ?? button.textContent;
        button.dataset.label = before;
        button.textContent = words;
        setTimeout(() => { button.textContent = before; }, 1500);
    }

    document.addEventListener("accel-copy", async function (event) {
        try {
            await navigator.clipboard.writeText(event.detail);
            say("Copied");
        } catch {
            setTimeout(() => say(copyByHand() ? "Copied" : "Press Ctrl+C"), 100);  // once the box has the text
        }
    });
})();
