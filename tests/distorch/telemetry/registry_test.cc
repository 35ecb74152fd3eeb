// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distorch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<ModuleId> Below(ModuleRegistry* registry, ModuleId root) {
  std::vector<ModuleId> ids;
  registry->Visit(root, [&](ModuleId id) { ids.push_back(id); });
  return ids;
}

TEST(RegistryTest, RootsAreNoOnesChildOldestFirst) {
  ModuleRegistry registry;
  const ModuleId layer = registry.Add();
  const ModuleId first = registry.Add();
  const ModuleId second = registry.Add();
  registry.Update(second, {.children = {layer}, .tensors = {}});
  EXPECT_THAT(registry.Roots(), ElementsAre(first, second));
}

TEST(RegistryTest, ChildBecomesRootWhenItsParentIsRemoved) {
  ModuleRegistry registry;
  const ModuleId layer = registry.Add();
  const ModuleId model = registry.Add();
  registry.Update(model, {.children = {layer, layer}, .tensors = {}});
  EXPECT_THAT(registry.Roots(), ElementsAre(model));
  registry.Remove(model);
  EXPECT_THAT(registry.Roots(), ElementsAre(layer));
  EXPECT_THAT(registry.parents(layer), IsEmpty());
  EXPECT_EQ(registry.size(), 1U);
}

TEST(RegistryTest, RemovedChildLeavesItsParentsList) {
  ModuleRegistry registry;
  const ModuleId layer = registry.Add();
  const ModuleId model = registry.Add();
  registry.Update(model, {.children = {layer}, .tensors = {}});
  registry.ClearDirty();
  registry.Remove(layer);
  EXPECT_TRUE(registry.dirty(model));
  EXPECT_THAT(registry.record(model).children, IsEmpty());
  EXPECT_FALSE(registry.Contains(layer));
}

TEST(RegistryTest, VisitTouchesEachModuleOnceParentsFirst) {
  ModuleRegistry registry;
  const ModuleId shared = registry.Add();
  const ModuleId left = registry.Add();
  const ModuleId right = registry.Add();
  const ModuleId model = registry.Add();
  registry.Update(left, {.children = {shared}, .tensors = {}});
  registry.Update(right, {.children = {shared}, .tensors = {}});
  registry.Update(model, {.children = {left, right}, .tensors = {}});
  EXPECT_THAT(Below(&registry, model), ElementsAre(model, left, shared, right));
}

TEST(RegistryTest, RingOfModulesIsStoodForByItsOldest) {
  ModuleRegistry registry;
  const ModuleId a = registry.Add();
  const ModuleId b = registry.Add();
  const ModuleId alone = registry.Add();
  registry.Update(a, {.children = {b}, .tensors = {}});
  registry.Update(b, {.children = {a}, .tensors = {}});
  EXPECT_THAT(registry.Roots(), ElementsAre(a, alone));
  EXPECT_THAT(Below(&registry, a), ElementsAre(a, b));
  registry.Update(a, {.children = {a}, .tensors = {}});
  registry.Remove(a);
  EXPECT_THAT(registry.Roots(), ElementsAre(b, alone));
}

TEST(RegistryTest, UpdateReachesAllAncestorsAndNoOneElse) {
  ModuleRegistry registry;
  const ModuleId layer = registry.Add();
  const ModuleId block = registry.Add();
  const ModuleId model = registry.Add();
  const ModuleId other = registry.Add();
  registry.Update(block, {.children = {layer}, .tensors = {}});
  registry.Update(model, {.children = {block}, .tensors = {}});
  registry.ClearDirty();
  EXPECT_TRUE(registry.Update(layer, {.children = {}, .tensors = {{}}}));
  EXPECT_TRUE(registry.dirty(block));
  EXPECT_TRUE(registry.dirty(model));
  EXPECT_FALSE(registry.dirty(other));
  registry.ClearDirty();
  EXPECT_FALSE(registry.Update(layer, {.children = {}, .tensors = {{}}}));
  EXPECT_FALSE(registry.any_dirty());
}

TEST(RegistryTest, FreedIdIsGivenAgainWithAHigherSerial) {
  ModuleRegistry registry;
  const ModuleId first = registry.Add();
  const std::int64_t serial = registry.serial(first);
  registry.Remove(first);
  const ModuleId second = registry.Add();
  EXPECT_EQ(first, second);
  EXPECT_GT(registry.serial(second), serial);
}

TEST(RegistryTest, FiveThousandModulesAThousandDeepNeedNoStack) {
  ModuleRegistry registry;
  const ModuleId root = registry.Add();
  ModuleId above = root;
  for (int depth = 0; depth < 1000; ++depth) {
    ModuleRecord record;
    for (int i = 0; i < 5; ++i) record.children.push_back(registry.Add());
    const ModuleId next = record.children[2];
    registry.Update(above, std::move(record));
    above = next;
  }
  EXPECT_EQ(registry.size(), 5001U);
  EXPECT_THAT(registry.Roots(), ElementsAre(root));
  EXPECT_EQ(Below(&registry, root).size(), 5001U);
}

}  // namespace
}  // namespace distorch
