import type { NextConfig } from 'next'

// What create-next-app sets.
const nextConfig: NextConfig = { cacheComponents: true, partialPrefetching: true }

export default nextConfig
