/**
 * The contract every kernel class keeps: {@link org.tornadomoe.modular.FusedMoeExperts} says what it can serve and makes
 * {@link org.tornadomoe.modular.MoeKernel}s, which run one layer. {@link org.tornadomoe.modular.PrepareAndFinalize} and {@link
 * org.tornadomoe.modular.TopKWeightAndReduce} name the stages around the experts, {@link
 * org.tornadomoe.modular.WorkspaceShapes} what lies between them.
 */
@NullMarked
package org.tornadomoe.modular;

import org.jspecify.annotations.NullMarked;
