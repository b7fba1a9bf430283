/* Keeps the accordion's status line in step: asks for it again when a generation has put new pictures on the page. */

(function () {
    const latest = {};

    function firstPicture(tab) {
        return gradioApp().querySelector(`#${tab}_gallery img`)?.src;
    }

    onAfterUiUpdate(function () {
        for (const tab of ["txt2img", "img2img"]) {
            const picture = firstPicture(tab);
            if (picture && picture !== latest[tab]) {
                latest[tab] = picture;
                gradioApp().querySelector(`#accel_${tab}_refresh`)?.click();
            }
        }
    });
})();
