// The interface as text: every operation of openapi.json with its fields and examples as curl commands.

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const options = schema.anyOf || schema.oneOf;
  if (options) return options.map(kind).join(" | ");
  return schema.type === "array" ? `list of ${kind(schema.items)}` : schema.type || "any";
}

function fields(name, schema) {
  const body = make("tbody");
  for (const [field, value] of Object.entries(schema.properties || {})) {
    const needed = (schema.required || []).includes(field) ? "required" : value.default === undefined ? "" : `default ${JSON.stringify(value.default)}`;
    body.append(make("tr", {}, make("th", { scope: "row", textContent: field }), make("th", { textContent: kind(value) }), make("td", { textContent: needed })));
  }
  return make("table", {}, make("caption", { textContent: `${name}: ${schema.description || ""}` }), body);
}

const api = await (await fetch("openapi.json")).json();
const main = document.getElementById("docs");
main.replaceChildren(make("p", { textContent: api.info.description }));
for (const [path, operations] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const section = make("section", {}, make("h2", { textContent: `${method.toUpperCase()} ${path}` }), make("p", { textContent: `${operation.summary}. ${operation.description || ""}` }));
    for (const [type, content] of Object.entries((operation.requestBody || { content: {} }).content)) {
      const name = kind(content.schema);
      if (api.components.schemas[name]) section.append(fields(`${type}, ${name}`, api.components.schemas[name]));
      if (type.startsWith("multipart/")) {
        const form = "-F model=muomni -F file=@speech.wav -F response_format=srt";
        section.append(make("p", { textContent: "A recording as subtitles" }), make("pre", { textContent: `curl ${location.origin}${path} ${form}`, tabIndex: 0 }));
      }
      for (const example of Object.values(content.examples || {})) {
        const command = `curl ${location.origin}${path} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(example.value))}`;
        section.append(make("p", { textContent: example.summary }), make("pre", { textContent: command, tabIndex: 0 }));
      }
    }
    main.append(section);
  }
}
main.append(make("h2", { textContent: "Shapes" }));
for (const [name, schema] of Object.entries((api.components || { schemas: {} }).schemas)) if (schema.properties) main.append(fields(name, schema));
