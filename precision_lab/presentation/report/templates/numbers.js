// One number in one format. Everything is a fraction of two BigInts, rounded once: ties to even.
"use strict";

lab.numbers = (() => {
  const abs = (a) => (a < 0n ? -a : a);
  const bitLength = (a) => (a ? (a.toString(16).length - 1) * 4 + (32 - Math.clz32(parseInt(a.toString(16)[0], 16))) : 0);
  const shift = (a, n) => (n >= 0 ? a << BigInt(n) : a >> BigInt(-n)); // to the right only where nothing falls off

  // A number is {neg, nan}, {neg, inf} or {neg, num, den} with num >= 0 and den > 0.
  const fraction = (num, den, neg = num < 0n) => ({ neg, num: abs(num), den });
  const timesPower = (num, den, e) => (e >= 0 ? [num << BigInt(e), den] : [num, den << BigInt(-e)]);

  const parse = (text) => {
    const cleaned = text.trim().toLowerCase().replaceAll("_", "").replaceAll("**", "^").replace("−", "-");
    const neg = cleaned[0] === "-";
    const magnitude = /^[+-]/.test(cleaned) ? cleaned.slice(1) : cleaned;
    if (!/^([\d.]|inf|nan)/.test(magnitude)) return null; // a second sign, for one
    if (magnitude === "nan") return { neg, nan: true };
    if (magnitude === "inf" || magnitude === "infinity") return { neg, inf: true };
    const marks = magnitude.startsWith("0x") ? /p[+-]?0*(\d*)/g : /[e^][+-]?0*(\d*)/g;
    for (const [, digits] of magnitude.matchAll(marks)) {
      if (digits.length > 5 || Number(digits) > 10000) return null; // the digits would fill the memory
    }
    let found;
    if ((found = /^(?:(.+)\*)?2\^([+-]?\d+)$/.exec(magnitude))) {
      const factor = found[1] === undefined ? [1n, 1n] : plain(found[1]);
      return factor && fraction(...timesPower(...factor, Number(found[2])), neg);
    }
    if ((found = /^0x([\da-f]*)\.?([\da-f]*)(?:p([+-]?\d+))?$/.exec(magnitude))) {
      if (!found[1] && !found[2]) return null;
      const digits = BigInt(`0x${found[1]}${found[2]}`);
      return fraction(...timesPower(digits, 1n, Number(found[3] ?? 0) - 4 * found[2].length), neg);
    }
    const read = plain(magnitude);
    return read && fraction(...read, neg);
  };

  const plain = (text) => {
    let found;
    if ((found = /^\s*(\d+)\s*\/\s*(\d+)\s*$/.exec(text))) {
      return BigInt(found[2]) ? [BigInt(found[1]), BigInt(found[2])] : null;
    }
    found = /^\s*(?=\d|\.\d)(\d*)\.?(\d*)(?:e([+-]?\d+))?\s*$/.exec(text);
    if (!found) return null;
    const digits = BigInt(`${found[1]}${found[2]}`);
    const tens = Number(found[3] ?? 0) - found[2].length;
    return tens >= 0 ? [digits * 10n ** BigInt(tens), 1n] : [digits, 10n ** BigInt(-tens)];
  };

  // The multiple of the spacing at num/den > 0 that is closest: {steps, unit}, the value being steps * 2^unit.
  const closest = (num, den, mantissaBits, emin) => {
    let e = bitLength(num) - bitLength(den);
    if (e >= 0 ? num < shift(den, e) : shift(num, -e) < den) e -= 1;
    const unit = Math.max(e, emin) - mantissaBits;
    const [above, under] = timesPower(num, den, -unit);
    let steps = above / under;
    const twice = 2n * (above % under);
    if (twice > under || (twice === under && steps % 2n === 1n)) steps += 1n;
    return { steps, unit };
  };

  const power = (e) => {
    const bits = e >= -1022 ? BigInt(e + 1023) << 52n : 1n << BigInt(e + 1074);
    return new Float64Array(new BigUint64Array([bits]).buffer)[0];
  };
  const toDouble = ({ neg, num, den, inf, nan }) => {
    if (nan) return NaN;
    let value = inf ? Infinity : 0;
    if (!inf && num) {
      const { steps, unit } = closest(num, den, 52, -1022);
      value = unit > 971 ? Infinity : Number(steps) * power(unit);
    }
    return neg ? -value : value;
  };

  const limits = (f) => {
    const top = (1 << f.exponentBits) - 1;
    const magnitudes = 2 ** (f.bits - 1);
    return {
      emin: 1 - f.bias,
      emax: (f.specials === "ieee" ? top - 1 : top) - f.bias,
      sign: magnitudes,
      infinity: f.specials === "ieee" ? top * 2 ** f.mantissaBits : null,
      // the code, without its sign, of the largest finite value
      largest: f.specials === "ieee" ? top * 2 ** f.mantissaBits - 1 : f.specials === "fn" ? magnitudes - 2 : magnitudes - 1,
    };
  };
  const canonicalNaN = (f) => {
    const { sign, infinity } = limits(f);
    if (f.specials === "ieee") return infinity + 2 ** (f.mantissaBits - 1);
    return f.specials === "fn" ? sign - 1 : sign;
  };

  const encode = (x, f) => {
    const { emin, sign, infinity, largest } = limits(f);
    const minus = x.neg ? sign : 0;
    if (x.nan) {
      if (f.specials === "finite") return sign - minus; // there is no NaN: a zero of the other sign, as ml_dtypes has it
      return f.specials === "fnuz" ? sign : canonicalNaN(f) + minus;
    }
    const beyond = infinity !== null ? infinity + minus : f.specials === "finite" ? largest + minus : null;
    const overflow = beyond ?? (f.specials === "fnuz" ? sign : canonicalNaN(f) + minus);
    if (x.inf) return overflow;
    let code = 0;
    if (x.num) {
      const { steps, unit } = closest(x.num, x.den, f.mantissaBits, emin);
      code = Number(steps) + (unit - (emin - f.mantissaBits)) * 2 ** f.mantissaBits; // a carry climbs into the exponent
    }
    if (code > largest) return overflow;
    return code === 0 && f.specials === "fnuz" ? 0 : code + minus;
  };

  const decode = (code, f) => {
    const { sign, infinity, largest } = limits(f);
    const neg = code >= sign;
    const magnitude = code % sign;
    if (f.specials === "fnuz" && code === sign) return { neg: true, nan: true };
    if (magnitude === infinity) return { neg, inf: true };
    if (magnitude > largest) return { neg, nan: true };
    const field = Math.floor(magnitude / 2 ** f.mantissaBits);
    const steps = BigInt((magnitude % 2 ** f.mantissaBits) + (field ? 2 ** f.mantissaBits : 0));
    const unit = Math.max(field, 1) - f.bias - f.mantissaBits;
    const [num, den] = timesPower(steps, 1n, unit);
    return { neg, num, den, unit };
  };

  const kindOf = (code, f) => {
    const x = decode(code, f);
    if (x.nan || x.inf) return x.nan ? "nan" : "infinity";
    if (!x.num) return "zero";
    return code % limits(f).sign < 2 ** f.mantissaBits ? "subnormal" : "normal";
  };

  // The codes of the neighbours, null where there is none.
  const neighbours = (code, f) => {
    const { sign, infinity, largest } = limits(f);
    const x = decode(code, f);
    if (x.nan) return { below: null, above: null };
    const size = code % sign;
    const signed = (magnitude, neg) => (neg && (magnitude || f.specials !== "fnuz") ? magnitude + sign : magnitude);
    const out = size === infinity || (size === largest && infinity === null) ? null : size === 0 ? 1 : size + 1;
    const outward = out === null ? null : signed(out, x.neg);
    const inward = size === 0 ? null : size === 1 ? 0 : signed(size - 1, x.neg);
    if (size === 0) return { below: signed(1, true), above: 1 };
    return x.neg ? { below: outward, above: inward } : { below: inward, above: outward };
  };

  // What `inspect` of inspection.py says of a number and the code that stands for it.
  const inspect = (x, code, f) => {
    const stored = decode(code, f);
    const kind = kindOf(code, f);
    const { below, above } = neighbours(code, f);
    const valueOf = (c) => (c === null ? NaN : toDouble(decode(c, f)));
    const found = { code, kind, stored: toDouble(stored), below: valueOf(below), above: valueOf(above), belowCode: below, aboveCode: above };
    found.ulp = stored.nan || stored.inf ? NaN : power(stored.unit);
    found.error = found.relative = NaN;
    found.exact = false;
    if (!x.nan && !x.inf && !stored.nan && !stored.inf) {
      const minus = (number) => (number.neg ? -number.num : number.num);
      const difference = minus(stored) * x.den - minus(x) * stored.den;
      found.exact = difference === 0n;
      const quotient = (num, den) => toDouble(fraction(num, den, num < 0n));
      found.error = quotient(difference, stored.den * x.den);
      if (x.num) found.relative = quotient((x.neg ? -1n : 1n) * difference, stored.den * x.num);
    }
    const beyond = () => {
      const { emin, largest } = limits(f);
      if (!x.num) return false;
      const { steps, unit } = closest(x.num, x.den, f.mantissaBits, emin);
      return Number(steps) + (unit - (emin - f.mantissaBits)) * 2 ** f.mantissaBits > largest;
    };
    if (x.nan) found.lost = "nan";
    else if (x.inf) found.lost = found.stored === toDouble(x) ? "exact" : "overflowed";
    else if (beyond()) found.lost = "overflowed";
    else found.lost = x.num && !stored.num ? "flushed" : found.exact ? "exact" : "rounded";
    return found;
  };

  return { parse, encode, decode, inspect, toDouble };
})();

lab.numberExplorer = (formats, first) => {
  const { parse, encode, inspect, toDouble } = lab.numbers;
  const find = (name) => document.querySelector(`#${name}`);
  const [input, menu, bits, problem] = ["number", "number-format", "bits", "number-problem"].map(find);
  let number = parse(input.value);
  let format = formats.find((f) => f.name === first) ?? formats[0];
  let code = 0;

  const text = (value) => (Number.isNaN(value) ? "NaN" : Object.is(value, -0) ? "-0" : String(value).replace("Infinity", "inf"));
  const orDash = (value) => (Number.isNaN(value) ? "–" : text(value));
  const hex = (c, f) => `0x${c.toString(16).padStart(Math.ceil(f.bits / 4), "0")}`;
  const fateText = {
    exact: "exactly", rounded: "rounded", flushed: "flushed to zero", overflowed: "overflowed", nan: "not a number",
  };

  const show = () => {
    const found = inspect(number, code, format);
    const rounded = encode(number, format);
    [...bits.querySelectorAll("button")].forEach((button, i) => {
      const place = format.bits - 1 - i;
      const on = Math.floor(code / 2 ** place) % 2;
      button.textContent = String(on);
      button.setAttribute("aria-pressed", String(Boolean(on)));
    });
    find("number-code").textContent = hex(code, format);
    find("number-value").textContent = text(found.stored);
    find("number-kind").textContent = found.kind === "nan" ? "NaN" : found.kind;
    find("number-fate").textContent = code === rounded ? fateText[found.lost] : "not the rounding of what was typed";
    find("number-error").textContent = orDash(found.error);
    find("number-relative").textContent = Number.isNaN(found.relative) ? "–" : `${Number((100 * found.relative).toPrecision(3))} %`;
    find("number-ulp").textContent = orDash(found.ulp);
    for (const [name, value, next] of [["below", found.below, found.belowCode], ["above", found.above, found.aboveCode]]) {
      const button = find(`number-${name}`);
      button.textContent = orDash(value);
      button.disabled = next === null;
      button.onclick = () => { code = next; show(); };
    }
    find("number-again").disabled = code === rounded;
  };

  const build = () => {
    const fields = [["sign", 1], ["exponent", format.exponentBits], ["mantissa", format.mantissaBits]];
    let place = format.bits;
    bits.replaceChildren(
      ...fields.map(([name, length]) => {
        const field = document.createElement("div");
        field.className = `field ${name}`;
        field.setAttribute("role", "group");
        field.setAttribute("aria-label", name);
        const caption = document.createElement("span");
        caption.className = "caption";
        caption.textContent = length > 1 ? `${name}, ${length} bits` : name;
        const row = document.createElement("div");
        row.className = "row";
        for (let i = 0; i < length; i++) {
          place -= 1;
          const button = document.createElement("button");
          const weight = 2 ** place;
          button.type = "button";
          button.setAttribute("aria-label", `${name} bit ${length - i}`);
          button.addEventListener("click", () => {
            code += Math.floor(code / weight) % 2 ? -weight : weight;
            show();
          });
          row.append(button);
        }
        field.append(row, caption);
        return field;
      }),
    );
  };

  const everywhere = () => {
    find("number-everywhere").replaceChildren(
      ...formats.map((f) => {
        const found = inspect(number, encode(number, f), f);
        const row = document.createElement("tr");
        const heading = document.createElement("th");
        heading.scope = "row";
        heading.textContent = f.name;
        const kind = ["subnormal"].includes(found.kind) ? ", subnormal" : "";
        const cells = [hex(found.code, f), text(found.stored), orDash(found.error), orDash(found.ulp), `${fateText[found.lost]}${kind}`];
        row.append(heading, ...cells.map((cell, i) => {
          const td = document.createElement("td");
          td.textContent = cell;
          if (i < 4) td.className = "number";
          return td;
        }));
        return row;
      }),
    );
  };

  const round = () => { code = encode(number, format); show(); };
  const read = () => {
    const parsed = parse(input.value);
    input.setAttribute("aria-invalid", String(!parsed));
    problem.textContent = parsed ? "" : "Write it like 1e-7, 1/3, 2^-25, 1.5*2^-14, 0x1.8p-3, inf or nan.";
    if (!parsed) return;
    number = parsed;
    find("number-typed").textContent = text(toDouble(number));
    round();
    everywhere();
  };
  menu.append(...formats.map((f) => new Option(f.name, f.name, false, f === format)));
  menu.addEventListener("change", () => { format = formats[menu.selectedIndex]; build(); round(); });
  input.addEventListener("input", read);
  find("number-again").addEventListener("click", round);
  build();
  read();
};
