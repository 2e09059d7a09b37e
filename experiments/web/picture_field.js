// A picture becomes a data URL in the page and travels with the request: no upload, so no file on the server.
element.addEventListener("change", (event) => {
  const file = event.target.files && event.target.files[0];
  if (!file) return;
  if (file.size > props.bytes) {
    props.value = null;
    props.problem = `${(file.size / 1e6).toFixed(1)} MB; at most ${props.bytes / 1e6} MB: scale the picture down`;
    return;
  }
  const reader = new FileReader();
  reader.onload = () => {
    props.problem = "";
    props.value = reader.result;
    trigger("change");
  };
  reader.readAsDataURL(file);
});
element.addEventListener("click", (event) => {
  if (event.target.tagName !== "BUTTON") return;
  props.value = null;
  trigger("change");
});
