// What a person is called who rates: one name for the whole browser, on the board as in blind tests.
const RATER = "ddpo-studio/rater";
const NOBODY = "me";

/** A name as it is kept: without control and format characters, and with plain spaces only, as the server takes it. */
function raterName(text) {
  return [...text.replace(/\p{Z}/gu, " ")].filter((sign) => !/\p{C}/u.test(sign)).join("").replace(/ +/g, " ").trim().slice(0, 40).trim() || NOBODY;
}
