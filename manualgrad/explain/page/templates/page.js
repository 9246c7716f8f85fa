"use strict";
(() => {
{% include "values.js" %}
{% include "build.js" %}
{% include "formulas.js" %}
{% include "highlight.js" %}
{% include "stepper.js" %}
{% include "run.js" %}
})();
