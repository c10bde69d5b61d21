/**
 * The contract every kernel class keeps: {@link org.tornadomoe.modular.FusedMoeExperts} says what it can serve and makes
 * {@link org.tornadomoe.modular.MoeKernel}s, which run one layer.
 */
@NullMarked
package org.tornadomoe.modular;

import org.jspecify.annotations.NullMarked;
