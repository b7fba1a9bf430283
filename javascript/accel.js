/* Keeps the accordion's status line in step: asks for it again when a generation has put its pictures on the page. */

(function () {
    const latest = {};

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
                gradioApp().querySelector(`#accel_${tab}_refresh`)?.click();
            }
        }
    });
})();
