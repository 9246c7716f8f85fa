"use strict";
(() => {
{% include "values.js" %}
{% include "highlight.js" %}
{% include "stepper.js" %}
{% include "run.js" %}
})();
