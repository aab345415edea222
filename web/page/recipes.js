// The recipes a visitor can choose: recipes/index.json names files of the form
// { title, about, prompt, teacher, recipe }. `recipe` is what potstill follows; `teacher` a model for its own words.

async function json(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw Object.assign(new Error(`${url} could not be fetched`), { kind: "network" });
  }
  if (!response.ok) throw Object.assign(new Error(`${url}: the server answered ${response.status}`), { kind: "network" });
  return response.json();
}

/** All of them, in the index's order, with `id`. */
export async function loadRecipes() {
  const names = await json("recipes/index.json");
  return Promise.all(names.map(async (id) => ({ id, ...(await json(`recipes/${id}.json`)) })));
}

/** The same student on the same tokens, taught by the text alone; the teacher only measures it. Null without one. */
export function twinOf(recipe) {
  if (!recipe.teacher) return null;
  return { ...structuredClone(recipe), loss_functions: [{ function: "cross_entropy", weight: 1 }] };
}

/** A recipe from what a visitor typed; throws what to say. */
export function parseRecipe(text) {
  let recipe;
  try {
    recipe = JSON.parse(text);
  } catch (error) {
    throw Object.assign(new Error(`the recipe is not JSON: ${error.message}`), { kind: "input" });
  }
  if (recipe === null || typeof recipe !== "object" || Array.isArray(recipe)) {
    throw Object.assign(new Error("the recipe: expected an object { ... }"), { kind: "input" });
  }
  return recipe;
}
