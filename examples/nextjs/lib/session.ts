/** The organization of whoever is logged in; null: nobody is. Put your own login here: never take it from the request's body. */
export async function organizationOf(): Promise<string | null> {
  return process.env.EXAMPLE_ORGANIZATION ?? null
}
